"""The authors' release: converted without running a pickle, downloaded, and checked against the converted file.

Nothing here imports scikit-learn, joblib or transformers, and the hub's client is imported only to download.
"""
