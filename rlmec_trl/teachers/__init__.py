"""Teachers: who writes minimum edits."""
