"""Training. Start reading at ``loop.py``, the run from its configuration to its summary.

It uses ``experiment.py`` (everything that a configuration names, built and checked), ``task.py``
(what a network learns, of which ``classification.py`` is the usual kind), ``recipe.py``
(learning rate and optimizer), ``step.py`` (one update on all devices), ``evaluation.py``,
``checkpoints.py`` and ``reporting.py``.
"""
