"""RALI's training, from labelled images to a model file; needs the extra `train`."""
