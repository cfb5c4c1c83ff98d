"""Code that all steps share: settings, command line, artifacts, storage, tracking, Ray."""
