"""The guest: its image, its agent, and the client that talks to it."""
