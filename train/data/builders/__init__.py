"""TFDS builders of data sets, which prepare them without TensorFlow."""
