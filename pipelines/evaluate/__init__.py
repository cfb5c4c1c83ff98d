"""Evaluate: draw what a suite asks for, score each image, and say what the numbers are and what they mean.

step.py       the step: its settings are checked, and what is below comes together
suites.py     the suites, as data: prompts, images a prompt, scorers, measures
prompts.py    the benchmarks' own files of prompts
subject.py    what is evaluated, and where it came from
picture_sets.py, generate.py    images, every missing one drawn by an actor pool
scorers.py    what looks at one image at a time: settings and models
score.py      scores, every missing one by an actor pool each
measures.py, set_measures.py    from scores to the numbers of the table; bootstrap.py their intervals
show.py       images of images, the table, MLflow
registry.py   models of MLflow's registry: in, and the scores back
self_test.py  known answers, before GPU hours are spent

Importing the package loads none of it: the actors that score need no model of images, and start in half the time.
"""

