"""What a run leaves: folders with a manifest that can be verified, loaded and merged."""
