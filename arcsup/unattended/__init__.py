"""Installations that ask nobody: answer files for installers, and the media that carry them.

Pure but for ``passwords`` (the C library's crypt) and ``store`` (the daemon's folder of media).
"""
