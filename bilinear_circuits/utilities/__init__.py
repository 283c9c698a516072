"""What every room uses: text for notebooks, progress, files, processes."""
