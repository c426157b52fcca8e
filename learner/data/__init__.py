"""Reads questions from files and from the hub, whatever their form, and lists the rows that cannot be used."""
