"""From public data to training files."""
