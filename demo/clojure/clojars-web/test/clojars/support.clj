(ns clojars.support
  "What tests use."
  (:require [clojars.store :as store])
  (:import (java.io File)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)))

(defn temporary-directory ^File []
  (.toFile (Files/createTempDirectory "clojars-" (make-array FileAttribute 0))))

(defn remove-all! [^File directory]
  (doseq [^File found (reverse (file-seq directory))]
    (.delete found)))

(defmacro with-store
  "Evaluate with a store of its own, which is gone afterwards."
  [[store] & body]
  `(let [directory# (temporary-directory)
         ~store (store/open directory#)]
     (try ~@body (finally (remove-all! directory#)))))

(defn bytes-of ^bytes [^String text]
  (.getBytes text "ISO-8859-1"))

(defn put!
  "Store a text as a file."
  [store path ^String text]
  (let [part (store/open-part! store)]
    (try
      (store/write! part (bytes-of text) (count text))
      (store/keep! store part path nil)
      (finally (store/close-part! part)))))
