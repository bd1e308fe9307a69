"""The stages of the pipeline, each as a function."""
