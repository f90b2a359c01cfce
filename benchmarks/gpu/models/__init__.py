"""What is run: the bundled model and random ones, as bundles with exams, and their engines."""
