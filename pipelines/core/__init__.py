"""What every step shares: settings, command line, artifacts, storage, tracking, Ray."""
