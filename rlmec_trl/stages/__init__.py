"""The stages of the pipeline, each as a function."""

from ..data.library_warnings import hide_library_warnings


# Here, because the modules of this room import the libraries
hide_library_warnings()
