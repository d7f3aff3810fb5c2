"""Scenes as agencies deliver them: folders of band files, metadata and masks that are one product.

``find`` tells products from other files by their names alone; a reader for each kind says from the metadata what their
scenes are (``draft``); ``masks`` reads the quality masks that they bring along. No pixel is read on the way.
"""
