"""Reports: from answer files to tables, pictures and one HTML page."""
