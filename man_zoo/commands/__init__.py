"""``man-zoo COMMAND``: one file a command, each of flags and the call that they make."""
