"""The commands that tell of CLIPs and of trainings before anything is loaded."""
