"""Pixel models of FLUX.2 klein as diffusers pipelines: text to image, image to image, inpainting and outpainting.

Importing this package adds the pipelines to the tables of diffusers' AutoPipelineForText2Image,
AutoPipelineForImage2Image and AutoPipelineForInpainting, which have no place for the one in two stages.
"""

from diffusers.pipelines import auto_pipeline

from asymflow.diffusers_pipeline.base import PIPELINES as PIPELINES
from asymflow.diffusers_pipeline.base import SCHEDULERS as SCHEDULERS
from asymflow.diffusers_pipeline.base import PixelPipeline as PixelPipeline
from asymflow.diffusers_pipeline.hires import AsymFlux2KleinHiresPipeline as AsymFlux2KleinHiresPipeline
from asymflow.diffusers_pipeline.image_to_image import AsymFlux2KleinImg2ImgPipeline as AsymFlux2KleinImg2ImgPipeline
from asymflow.diffusers_pipeline.images import expand_canvas as expand_canvas
from asymflow.diffusers_pipeline.inpaint import AsymFlux2KleinInpaintPipeline as AsymFlux2KleinInpaintPipeline
from asymflow.diffusers_pipeline.text_to_image import AsymFlux2KleinPipeline as AsymFlux2KleinPipeline

# diffusers has no function to register a pipeline; its tables are plain dictionaries, which it extends itself.
auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING["asymflux2-klein"] = AsymFlux2KleinPipeline
auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING["asymflux2-klein"] = AsymFlux2KleinImg2ImgPipeline
auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING["asymflux2-klein"] = AsymFlux2KleinInpaintPipeline
