"""Training. Start reading at ``loop.py``, the run from its configuration to its summary.

It uses ``experiment.py`` (everything that a configuration names, built and checked), ``recipe.py``
(learning rate and optimizer), ``step.py`` (one update on all devices), ``evaluation.py``,
``checkpoints.py`` and ``reporting.py``.
"""
