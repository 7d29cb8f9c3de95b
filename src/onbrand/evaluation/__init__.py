"""What of a brand's look a picture keeps: properties, pose, text, diversity, distances, and their intervals."""
