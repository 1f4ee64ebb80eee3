"""A finished stage -> what other programs load: folders, adapters, files.

opened.py      which stage, and what of it leaves
weights.py     one tensor at a time from the devices, factors merged
classifier.py  a reward model as transformers' sequence classification
tokenizer_files.py   the tokenizer, the template, the end tokens
facts.py card.py     what the run says of itself, as a model card
folders.py     all of it in a folder that is whole or not there
"""
