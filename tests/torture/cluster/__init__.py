"""The campaigns on a whole cluster: `kills` of its programs, and faults of its API server (`apifaults`).

What is asked for is decided by `plan` and sent by `requests`; `look` sees what came of it, and `model` judges that.
"""
