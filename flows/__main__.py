"""`python -m flows` is `malmm`, for images and machines where the command is not installed."""

from flows.cli import main

main()
