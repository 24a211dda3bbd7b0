"""Measures of recordings and generated speech, the speech models behind them, and conclusions.

The steps of an evaluation::

    clusters = Clusters.of(clip_ids, recordings, speakers)               # clusters
    mean_difference((adapter_sums, base_sums), (counts, counts), clusters, weights)  # intervals
    OtherTexts(rows, speakers)                                            # text_use
    measure_speech(samples, sample_rate_hz, codes)                        # measures, per waveform
    totals(...), differences(...)                                         # comparison, over prompts
    judge(differences, ...).write(path)                                   # verdict
"""
