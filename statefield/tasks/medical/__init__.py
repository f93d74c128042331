"""Medical segmentation: `statefield medical train | test | predict | evaluate`, pictures and volumes."""
