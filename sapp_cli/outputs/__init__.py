"""What a run leaves behind: weights under the source's names, manifest, model card."""
