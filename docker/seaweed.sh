#!/bin/sh
# Starts SeaweedFS with one S3 identity taken from the environment.
set -eu
cat > /tmp/s3.json <<EOF
{"identities":[{"name":"des","credentials":[{"accessKey":"$DES_S3_ACCESS_KEY","secretKey":"$DES_S3_SECRET_KEY"}],
 "actions":["Admin","Read","Write","List","Tagging"]}]}
EOF
exec weed -logtostderr=true server -dir=/data -ip=s3 -ip.bind=0.0.0.0 -filer=true -s3 -s3.port=8333 \
  -s3.config=/tmp/s3.json -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false
