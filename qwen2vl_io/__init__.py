"""Below the model: pictures, clips, messages and options from outside, read and checked."""
