"""What of a brand's look an image keeps: properties, likelihood, text, statistics, and the check of a folder."""
