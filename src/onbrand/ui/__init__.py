"""The app in a browser: it writes requests, runs the verbs as commands, one at a time, and shows what they left."""
