"""Run a script with every way to the network refused: python offline.py SCRIPT ARGS..."""

import runpy
import socket
import sys


def refuse(*args, **kwargs):
    raise RuntimeError("tried to reach the network")


socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
sys.path[0] = ""  # as when the script is started itself, this file's folder is not importable
runpy.run_path(sys.argv[0], run_name="__main__")
