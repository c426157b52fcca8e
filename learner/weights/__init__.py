"""Weight sync, the learner's side: sends new weights to the engines. ``publisher.py`` is where to begin."""
