"""The exam that a bundle carries: sitting it, grading it, and ``dragoman verify``, which certifies it."""
