"""What each command of the command line takes; work is imported when a command is asked for."""
