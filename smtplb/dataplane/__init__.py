"""The way of a message: listener -> session -> transaction -> relay -> router -> pool -> backend -> connection.

Each file knows those to its right. What must come back comes through a small Protocol that the lower file defines.
"""
