"""The built-in world: real handwritten digits composed into scenes, its tasks and its judge."""
