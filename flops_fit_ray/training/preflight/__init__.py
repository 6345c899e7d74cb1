"""What is measured and tried before a sweep is paid for."""
