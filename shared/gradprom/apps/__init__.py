"""What ``python -m gradprom`` offers."""
