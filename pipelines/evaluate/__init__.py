"""Evaluate step: sample a suite's prompts, score each image, and report measures with intervals and protocols.

step.py       the step: checks its settings and combines the modules below
suites.py     the suites as data: prompts, images per prompt, scorers, measures
selection.py  suite, models, prompts, scorers and measures of the settings
prompts.py, question_files.py    prompts and questions from the benchmarks' own files
subject.py, class_subject.py    the evaluated model and its lineage
image_sets.py, found_images.py, generate.py    images: found or sampled by an actor pool
scorer.py, scorers.py, judges.py, preferences.py    metric models that score single images: settings and loading
score.py      cached scores, by an actor pool per scorer
measures.py, set_measures.py, question_measures.py    measures from scores; bootstrap.py their intervals
show.py       image grids, the table, MLflow
registry.py   MLflow's model registry: fetch adapters, write scores
known_answers.py, known_questions.py    self-test of the measures

Importing the package loads no module: scoring actors need no generative model, and start in half the time.
"""
