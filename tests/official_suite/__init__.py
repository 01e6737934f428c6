"""What transformers' own tests for Qwen2-VL check, written anew: each call on ours and on the official class.

README.md beside this file says case by case which test stands for it, where we differ on purpose, what cannot apply.
"""
