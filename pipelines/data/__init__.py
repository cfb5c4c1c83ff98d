"""The data steps: curate, caption, color statistics, basis, encode; readers and writers of rows and images."""
