"""One file a configuration: ``get_config()`` gives it, the first line says how to run it."""
