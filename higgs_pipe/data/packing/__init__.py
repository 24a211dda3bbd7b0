"""From clips and codes to packed rows: samples are planned, sized and put into bins."""
