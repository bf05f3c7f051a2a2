"""Lightning modules, callbacks, trainer construction, resume."""
