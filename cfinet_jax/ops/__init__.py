"""Operations of static shape on one image."""
