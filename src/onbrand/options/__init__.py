"""What each verb can be told: dataclasses without torch; flags, help, YAML and the recorded command come from them."""
