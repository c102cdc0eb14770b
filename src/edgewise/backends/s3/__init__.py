"""Object stores that speak S3. Needs the extra ``edgewise[s3]``; the hub's side only."""
