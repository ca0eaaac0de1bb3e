"""The words that all rooms share: errors, units, ids, options, records and frames; nothing here touches the world."""
