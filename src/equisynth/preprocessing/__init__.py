"""Arrays in, arrays out: masks, intensities and resampling; nothing here knows files or datasets."""
